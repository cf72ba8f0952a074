"""What happens around training, one effect each. Callbacks that show what others log come after them in the list."""
