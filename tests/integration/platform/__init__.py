"""What the product takes for granted of interpreter and kernel, compared with others' knowledge of it."""
