"""An HTTP server around imgcls_infer: the extra `imgcls-infer[serve]`, command `imgcls-serve`."""
