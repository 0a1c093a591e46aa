"""Shipping: adapters merged with proof, and exported into the forms other engines open."""
