"""What an attack does to its images between two products: the loss it climbs, a step, a random start."""
