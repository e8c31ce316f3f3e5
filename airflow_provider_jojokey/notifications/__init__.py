"""Notifiers that send a task's images through the SMTP or Slack provider."""
