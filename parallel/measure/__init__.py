"""Instruments: communication, memory, step times, waiting, utilisation and the peak of the device."""
