"""Nets on faulty chips: what several tables share."""
