"""Colours and sizes that all pictures share."""

# Okabe and Ito's colours, told apart by people with any colour vision.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
INK = "#222222"
MUTED = "#777777"
PALE = "#f1f1ef"
DPI = 130
