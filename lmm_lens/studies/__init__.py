"""The two papers' studies on any models and data sets: what holds of their claims, with statistics and controls."""
