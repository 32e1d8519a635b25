"""Chat: rooms, their members and messages, kept in the store."""
