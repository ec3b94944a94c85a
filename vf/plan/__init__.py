"""Estimates what a run needs from a machine that is not at hand: memory and time, from chips' figures and programs."""
