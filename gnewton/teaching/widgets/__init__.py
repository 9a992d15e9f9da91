"""The widgets: one file each; `FigureWidget` draws, describes and links the controls of all of them."""
