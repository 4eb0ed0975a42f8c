"""Filters for templates: durations, times and sizes in words."""

from django import template

from nodes.backoffice import words

register = template.Library()
register.filter("duration", words.duration)
register.filter("moment", words.moment)
register.filter("of", words.share)
