"""What the pages of the admin are made of: rows that nobody edits, steps that are asked for, words."""
