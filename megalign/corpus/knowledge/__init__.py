"""Facts about invented people, organisations and places, in real languages or a clone, for testing knowledge transfer."""
