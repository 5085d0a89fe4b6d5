"""How far off the planner's predictions are: on published measurements, and on this machine."""
