"""What a visitor acts in beyond an environment as it is: toy_pick's table, which can be changed, and recorded episodes."""
