"""Small real models made from packages of a registry, for the demo and the tests."""
