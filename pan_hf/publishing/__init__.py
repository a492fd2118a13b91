"""What leaves the house: model cards, data cards, pushes to the Hub."""
