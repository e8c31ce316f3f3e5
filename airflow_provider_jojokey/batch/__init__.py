"""Many images in one task: the plan, the pace, the budget, the run and its manifest."""
