"""Cost: what a plan computes and moves, and from it the time on a device, without running it."""
