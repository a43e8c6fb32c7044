"""Sweeps: a grid of configs and seeds as runs under one root, each in a process of its own."""
