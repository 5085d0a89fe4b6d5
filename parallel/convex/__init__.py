"""Convex problems, methods that minimise them (first and second order, stochastic, proximal), and theorems on both.

A problem gives values, gradients and constants; its rows are divided over ranks, and what they add up is reduced. A
method is a generator of iterates. `paralab optimise` measures them.
"""
