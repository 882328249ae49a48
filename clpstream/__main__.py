"""`python -m clpstream`."""

from clpstream.cli import main

main()
