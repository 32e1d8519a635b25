"""The broker over Valkey or Redis."""
