"""The chat over HTTP: its commands, attachments, exports; and what all routes share."""
