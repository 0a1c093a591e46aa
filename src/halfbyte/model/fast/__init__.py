"""The fast path: the same sums in less time and memory, and a stated reason where it is off."""
