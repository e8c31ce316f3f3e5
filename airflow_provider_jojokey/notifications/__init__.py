"""Notifiers: a task's images in a message, for the SMTP and the Slack provider."""
