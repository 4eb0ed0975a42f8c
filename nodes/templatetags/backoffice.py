"""Filters for templates: durations and times in words."""

from django import template

from nodes.backoffice import words

register = template.Library()
register.filter("duration", words.duration)
register.filter("moment", words.moment)
