"""The papers' numbers as data, and (to come) what compares ours with them."""
