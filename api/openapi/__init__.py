"""The OpenAPI schema: drf-spectacular finds the paths, `operations` says what each does, and msgspec's types
(those that requests are checked by, and `answers`) become its schemas.
"""
