"""What decides: critics, planners, and the agent that uses them."""
