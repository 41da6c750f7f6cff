"""Notices by mail, Slack, webhook and others."""
