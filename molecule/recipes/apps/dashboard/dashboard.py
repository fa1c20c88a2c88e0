import panel as pn

VERSION = 1

pn.extension()
slider = pn.widgets.IntSlider(name="x", start=0, end=10, value=3)
button = pn.widgets.Button(name="Square")


def square(clicks):
    return f"clicked {clicks}: {slider.value**2}"


pn.Column(f"# Dashboard {VERSION}", slider, button, pn.bind(square, button.param.clicks)).servable()
