"""Links from a task's Details to its images."""
