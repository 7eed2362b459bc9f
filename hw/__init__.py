"""Datapaths in Amaranth, their integer-exact models, simulation and Verilog."""
