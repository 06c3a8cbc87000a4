"""The story's tests ask for ``callboard``; the app is the one of their own chapter."""

import pytest

from workers import App


@pytest.fixture
def callboard_app(request: pytest.FixtureRequest) -> App:
    app: App = request.module.app
    return app
