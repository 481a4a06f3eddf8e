"""Hydra configurations; installed as fedprox/conf. This file makes the folder a package to the build tool."""
