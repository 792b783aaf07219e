"""Kernels broken on purpose: `superopt verify` must refuse each, and accept each unbroken one."""
