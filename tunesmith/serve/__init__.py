"""Pages and interfaces over HTTP, on this machine alone."""
