"""Protocol code compared with other programs that know the same protocols."""
