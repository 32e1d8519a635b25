"""What an app declares: typed handlers, channels as code, dependencies. See ``docs/apps.md``."""
