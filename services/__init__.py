"""The four services and the command line. No service imports another; all that passes between them is in a stream."""
