"""Two-stage pre-training: pure steps, and a loop around them that can be stopped anywhere."""
