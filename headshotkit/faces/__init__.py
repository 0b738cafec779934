"""Find, recognise and measure faces; the only room that uses a face model."""
