"""Links from a task's details to its images."""
