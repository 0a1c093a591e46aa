"""`python -m halfbyte`, so that launchers can start it: `accelerate launch -m halfbyte train …`."""

from halfbyte.cli import main

main()
