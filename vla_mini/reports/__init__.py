"""Pages, plots and videos of what the rest of the package found: results and files in, HTML, SVG, PNG and GIF files out."""
