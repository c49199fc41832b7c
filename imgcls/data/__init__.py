"""Pictures: folders of them, packed into arrays, in batches on the device."""
