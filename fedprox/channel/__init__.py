"""What happens to an update between client and server: attacks, compression, and the bytes that travel."""
