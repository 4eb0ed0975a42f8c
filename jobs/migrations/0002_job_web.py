from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="job",
            name="web",
            field=models.CharField(max_length=16, blank=True, editable=False),
        ),
    ]
