"""Pages and interfaces over HTTP, on this machine alone unless a person asks for more."""
