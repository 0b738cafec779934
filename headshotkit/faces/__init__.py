"""The only room that knows a face model: find faces, recognise them, measure them."""
